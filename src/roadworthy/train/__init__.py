"""Training: what is lost by compressing is learned back, with the original network as the teacher.

    loop.py         one training loop for every kind of student: float, quantized, pruned
    gradient.py     the gradient of a step, image by image;  schedule.py: how many steps, how fast
    state.py        parameters, optimizer, running average, the best so far
    objective.py    what a student is trained towards
    feed.py         which images a step sees;  augment.py: how they are changed
    parallel.py     threads of one process, processes of one training
    checkpoint.py   everything in one file, so that a training can be killed at any moment
    diagnose.py     which layer made a loss that is not finite

PyTorch is imported by the modules of this package, not by the package itself.
"""
