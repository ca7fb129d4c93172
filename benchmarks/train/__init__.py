"""How fast training is: against the published recipe and bare loops, on more workers, of the hardware's peak."""
