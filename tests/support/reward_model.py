"""A reward model in a folder whose scores are known: 1 for texts that end in a liked character, -1 for all others."""

import torch


def save_reward_model(folder, *, liked="9", labels=("reward",), context=64, template=None):
    """Write a classifier over printable characters; only the last character's embedding reaches its output.

    With several labels, the first gets the score and the others 0.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForSequenceClassification

    characters = ["<pad>", "<eos>", *(chr(code) for code in range(32, 127)), "\n"]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(characters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    fast.chat_template = template
    names = dict(enumerate(labels))
    config = Qwen2Config(
        vocab_size=len(characters), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=context, pad_token_id=0,
        id2label=names, label2id={name: index for index, name in names.items()},
    )  # fmt: skip
    model = Qwen2ForSequenceClassification(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.zero_()
        model.model.embed_tokens.weight[:, 0] = -1.0
        model.model.embed_tokens.weight[[characters.index(one) for one in liked], 0] = 1.0
        model.score.weight[0, 0] = 16**-0.5  # the final norm scales one entry of 16 up by 4
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
