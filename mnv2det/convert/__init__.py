"""Converts foreign weight files into ours.

A reader yields the operators of a file (`graph`), a mapper matches them with one of our networks (`matching`), and
`network.convert_graph` makes tensors and header of the result.

A new network is a mapper in the folder of its format, and its name in ``MAPPERS`` of that folder's ``convert``. A new
format is a folder with a reader and such a ``convert``, and a row in ``commands.import_weights.FORMATS``.
"""
