"""The retail world, and the rubric that rates replies."""

from part3_pretrain.retail.rubric import rate, recognise

__all__ = ["rate", "recognise"]
