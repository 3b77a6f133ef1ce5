"""The reference cache on disk (``precompute_ref``): the reference is run once over the rows and never during training."""
