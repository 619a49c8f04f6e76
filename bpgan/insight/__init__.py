"""What a generator has learned and what a discriminator looks at: pure functions of functions and arrays.

``G`` is any function ``z[n, ...] -> x[n, ...]`` and ``D`` any function ``x[n, ...] -> scores[n]``. Labels and variables
are bound before: every method works on every network, and on functions whose right answer is known.
"""
