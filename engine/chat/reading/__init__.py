"""Reading of answers: text in pieces, marks, and calls in each way of writing them."""
