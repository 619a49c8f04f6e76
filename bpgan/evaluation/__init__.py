"""Evaluation as a library: images from a run or a file, feature nets, a table of metrics, and rows of numbers.

===================  ===================================================================================
``images``           sets of images and what a feature net makes of them
``classifier``       a classifier to train on a dataset
``features``         the feature nets by name; a user's own by ``module:name``
``table``            the metrics by name, and what is true of each; a user's own by ``module:name``
``samples``          images of a run's checkpoint, or of files
``rows``             what is written of each number: the form of ``metrics.json``
``evaluate``         the rows of all metrics of all candidates
``monitor``          evaluation of a model while it is trained: what ``--eval_every`` does
===================  ===================================================================================

Each file imports those above it only. For example, the Fréchet distance of a run's samples in the features of the
project's own classifiers::

    from bpgan.evaluation import evaluate, features, samples, table

    candidate, dataset = samples.of_run("runs/mnist_gan/default", "newest", n=10_000, seed=0)
    for extractor in features.parse("classifier")(dataset):
        rows = evaluate.evaluate([candidate], dataset, extractor, table.parse("fd"), seed=0)
"""
