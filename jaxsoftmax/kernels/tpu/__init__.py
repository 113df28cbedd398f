"""The fused losses on TPUs, in Pallas for Mosaic TPU."""
