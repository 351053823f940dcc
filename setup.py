"""Packages of the wheel; everything else stands in setup.cfg, which cannot add a folder to those that are found."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["mnv2det*"]), "mnv2det.configs"],
    # the configs stay at the top of the checkout, where people look for them
    package_dir={"mnv2det.configs": "configs"},
    package_data={"mnv2det": ["py.typed"], "mnv2det.configs": ["*.yaml", "_base_/*.yaml"]},
)
