"""Overrides that make configs/ssdlite_shapes.yaml a run of seconds."""

TINY = (
    "model.backbone.args.width=0.35",
    "model.input_size=[64,64]",
    "tasks.det.head.args.extras=[32,32,32,32]",
    "data.train.args.count=24",
    "data.train.args.size=[64,64]",
    "data.val.args.count=8",
    "data.val.args.size=[64,64]",
    "data.batch_size=4",
    "data.workers=1",
    "train.steps=12",
    "train.eval_every=1",
    "train.checkpoint_every=1",
    "train.log_every=1",
    "optim.warmup_steps=2",
)
