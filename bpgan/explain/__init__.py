"""What a trained run has learned: numbers, pictures and the records of a page, each part a function of a ``Subject``.

The methods are those of ``bpgan.insight``; here they are asked of a run, with its data and a classifier where these can
be had. ``experiments.interpret`` is the command.
"""
