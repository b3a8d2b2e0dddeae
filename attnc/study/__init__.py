"""Comparing attentions by what small transformers learn with them: tasks, models, training, budgets, reports."""
