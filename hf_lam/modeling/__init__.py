"""The code that travels: the files named `…_hf_lam.py` are copied, flat, into each saved model.

It imports torch, transformers and its siblings, and nothing else of hf_lam.
"""
