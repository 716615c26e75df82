"""What an edit did: answers, verdicts and likelihoods of two models on the same questions, compared."""
