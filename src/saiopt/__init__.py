"""SGD-SaI: momentum SGD with learning rates scaled at initialisation."""
