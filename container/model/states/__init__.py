"""Convolution and recurrent states: their slots, and the mixers that read and update them."""
