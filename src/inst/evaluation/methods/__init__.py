"""The methods that a comparison can have."""
