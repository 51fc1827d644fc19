"""Steps: frozen dataclasses, called as `(model, samples) -> model`; each is a row of `recipe.STEPS`."""
