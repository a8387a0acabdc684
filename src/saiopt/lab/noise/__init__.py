"""How the noise of SGD, T = lr / batch size, changes what is learned.

The modules are imported by name (``saiopt.lab.noise.perceptron``).
"""
