"""The page of the studio (Gradio): transfer, learning, generation and the library, in English and Chinese."""
