"""Speed code: attention, linear layers, devices and their budgets."""
