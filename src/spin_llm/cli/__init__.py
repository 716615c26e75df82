"""The command `spin-llm`; its options are the settings of the stages."""
