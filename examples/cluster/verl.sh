#!/bin/bash
# verl on a running Ray cluster, PMD-mean with tau = 0.1. The environment reaches every worker through Ray; verl's
# configuration has no place for tau. Install heliostat on every node, beside verl.
set -euo pipefail
ray job submit --address "$RAY_ADDRESS" --working-dir . --runtime-env-json '{"env_vars": {
    "VERL_USE_EXTERNAL_MODULES": "heliostat.adapters.verl",
    "HELIOSTAT_OBJECTIVE": "{\"name\": \"pmd-mean\", \"tau\": 0.1}"}}' -- \
    python3 -m verl.trainer.main_ppo \
    algorithm.adv_estimator=heliostat \
    algorithm.use_kl_in_reward=False \
    actor_rollout_ref.actor.policy_loss.loss_mode=heliostat \
    actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum \
    actor_rollout_ref.actor.use_kl_loss=False \
    actor_rollout_ref.actor.entropy_coeff=0 \
    actor_rollout_ref.actor.strategy=fsdp2 \
    actor_rollout_ref.actor.optim.lr=1e-6 \
    actor_rollout_ref.actor.ppo_mini_batch_size=64 \
    actor_rollout_ref.actor.use_dynamic_bsz=True \
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu=16384 \
    actor_rollout_ref.model.path=Qwen/Qwen2.5-7B-Instruct \
    actor_rollout_ref.rollout.name=vllm \
    actor_rollout_ref.rollout.n=16 \
    actor_rollout_ref.rollout.tensor_model_parallel_size=2 \
    actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=True \
    data.train_files=/shared/data/train.parquet \
    data.val_files=/shared/data/heldout.parquet \
    data.train_batch_size=256 \
    data.max_prompt_length=1024 \
    data.max_response_length=3072 \
    trainer.nnodes=4 \
    trainer.n_gpus_per_node=8 \
    trainer.total_epochs=1 \
    trainer.save_freq=20 \
    trainer.project_name=heliostat \
    trainer.experiment_name=pmd-mean
