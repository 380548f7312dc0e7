"""The processor of a fusion model: text, images, videos and audio in, tensors out.

This file travels with saved models; see `configuration_hf_lam.py`.
"""
