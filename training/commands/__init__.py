"""The sub-commands of `blora` that train and evaluate; they import torch only after their arguments are parsed."""
