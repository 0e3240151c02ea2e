"""Where location can enter a U-Net, and how it is encoded; without torch, for `locctx plan`."""

PLACES = {
    "input": "before the first convolution (CoordConv: within it)",
    "encoder_first": "after the first encoder stage, which also feeds the topmost skip connection",
    "encoder": "after every encoder stage",
    "encoder_deep": "after the deepest encoder stage that has 128 tokens or more",
    "bottleneck": "after the last encoder stage",
    "decoder": "after every decoder stage",
    "decoder_inner": "after every decoder stage but the last",
    "decoder_last": "after the last decoder stage",
    "stages": "after every encoder and every decoder stage",
    "logits": "on the logits of every resolution",
}
"""Place of a block -> where that is."""

LATE = ("decoder_last", "logits")
"""Places behind all of the planned network but its last layer: what a network says without location costs little more
there than what it says with it."""

ENCODINGS = ("identity", "frequency", "hash")
