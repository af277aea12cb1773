"""Heads without training: sums over images, and one solve that turns them into a linear layer. NumPy only.

    statistics.py       the sums: counts, class means, pooled within-class scatter; add, merge, subtract, forget
    teacher_sums.py     one more sum, for ridge towards a teacher's outputs
    history.py          the last additions kept apart, so that they can be taken back bit by bit
    features.py         from a backbone's tokens to the vector that is summed; random projection
    stable_random.py    random numbers that stay the same for ever, in any language
    shrinkage.py        ρ of the covariance: OAS
    ridge_penalty.py    λ of ridge: generalised cross-validation
    cholesky.py         solves with a symmetric positive definite matrix
    slda.py, ridge.py, ncm.py   sums → linear layer
    linear_head.py      that layer: weight [C, D], bias [C]
    head_rule.py        which head with which choices, as one record; sums + rule → layer and temperature
    model_world.py      images that the sums imply: draws for temperature and threshold, without any image
    temperature.py      one temperature for the probabilities
    overconfidence.py   how much higher it has to be on real images: measured on each addition, summed up
    mahalanobis.py      distance to the nearest class, for what no class explains
    safetensors_file.py, statistics_file.py   sums ↔ one file

Every choice that is not made by a person (ρ, λ, temperature, threshold) is a function of the sums alone. So a head does
not depend on how its images were split into tasks, nor on their order: to 1e-9, since floating-point sums round. One
number does depend on which classes came together, and not on their order: the factor on the temperature.
"""
