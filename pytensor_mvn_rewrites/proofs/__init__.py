"""What is proven of a graph, whatever its inputs are: of a batch, what holds for every member."""
