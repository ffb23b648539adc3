"""The drift service: notices that inputs, predictions or performance have left what a model was
trained on."""
