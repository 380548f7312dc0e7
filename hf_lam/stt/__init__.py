"""Tools for synthesised attention (STT): fitting, hardening, and a block for convolutional networks."""
