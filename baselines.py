"""Confidences that know nothing about a question, or only its family: what every method has to beat.

A constant confidence at the right level has a perfect ECE, and a student that only recognises hard families looks
good on a mixed test set. These rows show both.
"""

import numpy as np


def base_rate(labels, n):
    """The accuracy on labelled questions as everybody's confidence. labels (M,) -> (n,)"""
    return np.full(n, np.mean(labels))


def family_prior(labels, families, asked):
    """Each question gets the accuracy of its family on labelled questions; an unseen family gets the base rate.

    labels (M,) of 0 and 1, families (M,), asked: the families of N questions -> (N,).
    """
    labels, families = np.asarray(labels, dtype=float), np.asarray(families)
    rate = {f: labels[families == f].mean() for f in set(families.tolist())}
    return np.array([rate.get(f, labels.mean()) for f in asked])
