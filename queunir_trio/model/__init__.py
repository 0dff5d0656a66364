"""What exists: values and rules, without input, output or Trio."""
