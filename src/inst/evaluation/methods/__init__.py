"""The methods of a comparison."""
