"""What is done with a trained run: it is loaded, drawn from and exported.

===========  =====================================================
``card``     a model card
``dataset``  the data of a run, found again
``export``   files for others: safetensors, StableHLO, ONNX
``run``      a run as an object, without its data and its flags
``paths``    paths through the latents
===========  =====================================================
"""
