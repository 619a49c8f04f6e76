"""What is done with a trained run: it is loaded and drawn from.

===========  =====================================================
``run``      a run as an object, without its data and its flags
===========  =====================================================
"""
