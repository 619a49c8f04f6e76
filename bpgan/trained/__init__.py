"""What is done with a trained run: it is loaded, drawn from and exported.

===========  =====================================================
``run``      a run as an object, without its data and its flags
``paths``    paths through the latents
===========  =====================================================
"""
