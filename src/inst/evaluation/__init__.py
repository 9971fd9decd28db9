"""How good pictures are: perceptual distance (LPIPS), Frechet distance, and the networks behind them."""
