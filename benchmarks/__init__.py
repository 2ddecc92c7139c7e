"""The benchmark, the demo and the models that both measure."""
