"""What every other part agrees on: types, configuration, ranks. Imports nothing above it."""
