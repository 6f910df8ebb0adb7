"""Training: demonstrations, codec, main model, draft models, model card. Importing this loads nothing heavy."""
