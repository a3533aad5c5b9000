"""Which work runs when: a queue, admission and fair shares. Knows neither HTTP nor tensors."""
