"""The code that travels: every other file in this folder is copied, flat, into each saved model.

It imports torch, transformers and its siblings, and nothing else of hf_lam.
"""
