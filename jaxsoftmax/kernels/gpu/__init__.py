"""The fused losses on Hopper and Blackwell GPUs, in Pallas for Mosaic GPU."""
