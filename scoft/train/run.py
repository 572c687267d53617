"""The trainers' one story: from arguments that are in order to a LoRA, its page and its place on the Hub."""

import argparse
import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from scoft.launch import command_again, load_function, progress

import torch

from scoft.base_model import TRAINERS, StableDiffusion, base_commit, license_of
from scoft.cultures import culture_words
from scoft.dataset_source import check_embedded, find_dataset
from scoft.hub import ready_repo
from scoft.images import ImageTransform
from scoft.lora_folder import KOHYA_FILE, LORA_FILE, lora_name
from scoft.lora_page import publish
from scoft.train.build import build_dataset, build_distance, build_examples, build_objective, build_validation
from scoft.train.checkpoints import check_space, find_checkpoint, is_finished, load_checkpoint, save_checkpoint, seal
from scoft.train.examples import crosses_epoch, is_due, make_loader
from scoft.train.flags import DEFAULT_TRAIN_STEPS, loss_weights
from scoft.train.objective import Objective, training_losses
from scoft.train.optimizer import make_optimizer, make_schedule
from scoft.train.processes import StopRequest, check_packages, claimed, start_processes
from scoft.train.records import Metrics, abandon_what_follows, announce, resolve, write_record
from scoft.train.terms import IMAGE_TERMS
from scoft.train.validation import validation_prompts
from scoft.user_cache import user_cache
from scoft.weights import precision
from scoft_losses import weighted_sum


logger = logging.getLogger(__name__)


def train(args: argparse.Namespace, family: type[StableDiffusion], *, argv: Sequence[str], **own):
    """Train a LoRA for a family of base models, as the flags of its door say.

    argv: the command line behind them.  own: what the family's `load` takes besides the common arguments.
    Raises DataError, and FloatingPointError where the numbers come apart.
    """
    named_by = "--culture" if args.culture else "the last part of --dataset"
    name = lora_name(args.culture or Path(args.dataset).resolve().name, what=f"the LoRA's name, by {named_by},")
    output_dir = args.output_dir or Path(f"scoft-{name}")
    xformers = args.enable_xformers_memory_efficient_attention
    check_packages(report_to=args.report_to, use_8bit_adam=args.use_8bit_adam, xformers=xformers)
    check_embedded(args.dataset)
    judge = load_function(args.validation_judge, flag="--validation_judge") if args.validation_judge else None
    source = find_dataset(args.dataset, culture=args.culture)
    prompts = validation_prompts(args.validation_prompts, culture=args.culture) if args.num_validation_images else []
    with claimed(output_dir, goes_on=bool(args.resume_from_checkpoint)):
        weights = loss_weights(args)
        remember_in = user_cache(args.cache_dir) if args.remember else None
        dataset = build_dataset(args, source, weights=weights, remember_in=remember_in)

        # Accelerator.  Arguments and data are in order: from here on imports are heavy.
        accelerator = start_processes(
            mixed_precision=args.mixed_precision,
            report_to=args.report_to,
            output_dir=output_dir,
            logging_dir=args.logging_dir,
            allow_tf32=args.allow_tf32,
            cpu_threads=args.cpu_threads,
            compile=args.compile,
        )
        device, is_main = accelerator.device, accelerator.is_main_process
        images_per_update = args.train_batch_size * accelerator.num_processes * args.gradient_accumulation_steps
        total_steps = args.max_train_steps or DEFAULT_TRAIN_STEPS
        if args.num_train_epochs and not args.max_train_steps:
            total_steps = math.ceil(args.num_train_epochs * len(dataset) / images_per_update)
        checkpoint, first_step = None, 0
        if args.resume_from_checkpoint:
            checkpoint, first_step = find_checkpoint(output_dir, args.resume_from_checkpoint)
        repo_id, private = None, True
        if args.push_to_hub and is_main:
            hub_id, is_private = args.hub_model_id or f"scoft-{name}", args.hub_private_repo
            repo_id, private = ready_repo(hub_id, repo_type="model", private=is_private, flag="--hub_model_id")
        goal, resume = ["--max_train_steps", str(total_steps)], ["--resume_from_checkpoint", "latest"]
        retry = command_again(TRAINERS[family.pipeline_class], argv, without=[goal[0], resume[0]], more=goal + resume)
        hub = {"repo_id": repo_id, "private": private, "collection": args.hub_collection, "retry": retry}
        if is_finished(output_dir, step=first_step, total_steps=total_steps):
            logger.info("%s has all %d updates and its LoRA is written: nothing to train.", checkpoint, total_steps)
            if repo_id:
                publish(output_dir, **hub)
            return

        # Models: the frozen ones in the accelerator's dtype, the LoRA always in float32.
        base = args.pretrained_model_name_or_path
        base_revision = base_commit(base, revision=args.revision, cache_dir=args.cache_dir)
        place = {"revision": base_revision, "cache_dir": args.cache_dir}
        wanted = {"variant": args.variant, "prediction_type": args.prediction_type, "dtype": precision(accelerator)}
        model = family.load(base, **place, **wanted, **own)
        model.to(device)

        # LoRA
        from accelerate.utils import set_seed

        set_seed(args.seed)  # every process starts from the same LoRA
        alpha = args.lora_alpha or float(args.rank)
        lora_parameters = model.add_lora(rank=args.rank, alpha=alpha, target_modules=args.lora_layers.split(","))
        model.speed_up(
            gradient_checkpointing=args.gradient_checkpointing,
            xformers=xformers,
            compile=args.compile,
        )

        # Optimizer, and where to go on
        learning_rate = args.learning_rate * (images_per_update if args.scale_lr else 1)
        settings = {"lr": learning_rate, "weight_decay": args.adam_weight_decay}
        settings |= {"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
        if is_main:
            check_space(output_dir, lora_parameters)
        optimizer = make_optimizer(lora_parameters, use_8bit=args.use_8bit_adam, **settings)
        scaler = {} if accelerator.scaler is None else {"scaler": accelerator.scaler}
        state = {"optimizer": optimizer} | scaler
        if checkpoint:
            load_checkpoint(checkpoint, model=model, state=state)
        if args.resume_from_checkpoint:
            place_found = checkpoint or "the start: no checkpoint yet"
            logger.info("Resuming from %s, after %d updates.", place_found, first_step)
        steps = {"first_step": first_step, "total_steps": total_steps}
        lr_scheduler = make_schedule(
            optimizer, kind=args.lr_scheduler, warmup_steps=args.lr_warmup_steps, **steps, **settings
        )
        model.trained, optimizer = accelerator.prepare(model.trained, optimizer)
        stepped = {"parameters": lora_parameters, "optimizer": optimizer, "lr_scheduler": lr_scheduler}

        # Objective
        transform = ImageTransform(args.resolution, args.image_interpolation_mode)
        one_at_a_time = args.precompute_dir or args.perceptual_distance == "dreamsim"  # both write files
        with accelerator.main_process_first() if one_at_a_time else contextlib.nullcontext():
            distance = build_distance(args, model, device) if IMAGE_TERMS & weights.keys() else None
            known = {"weights": weights, "distance": distance, "transform": transform, "device": device}
            objective = build_objective(args, model=model, dataset=dataset, prompts=prompts, **known)

        # Data
        known = {"dataset": dataset, "transform": transform, "images_per_update": images_per_update}
        examples = build_examples(args, objective=objective, **known)
        loader = make_loader(
            examples,
            range(first_step, total_steps),
            train_batch_size=args.train_batch_size,
            accumulation=args.gradient_accumulation_steps,
            num_workers=args.dataloader_num_workers,
            accelerator=accelerator,
        )

        # Records
        resolved = resolve(
            dataset,
            source,
            name=name,
            prompts=prompts,
            base_model=base,
            base_revision=base_revision,
            license=license_of(base, **place),
            pipeline=family.pipeline_class,
            method=args.method,
            weights=weights,
            margin=objective.images and objective.images.margin,
            updates=total_steps,
            images_per_update=images_per_update,
            learning_rate=learning_rate,
            lora_alpha=alpha,
            mixed_precision=accelerator.mixed_precision,
        )
        if is_main:
            abandon_what_follows(output_dir, first_step)
            record = write_record(output_dir, vars(args), resolved)
            arguments = {flag: str(value) for flag, value in record["arguments"].items()}
            accelerator.init_trackers("scoft", config=arguments)
        metrics = Metrics(output_dir / "metrics.jsonl", step=first_step, accelerator=accelerator)
        every = args.perceptual_every if objective.images else None
        factors = (args.train_batch_size, accelerator.num_processes, args.gradient_accumulation_steps)
        announce(resolved, factors=factors, lora_parameters=lora_parameters, perceptual_every=every)
        validate = None
        if prompts:
            shown = {"prompts": prompts, "dataset": dataset, "subject": culture_words(args.culture or name)}
            known = {"folder": output_dir / "images", "keep_in": args.precompute_dir or remember_in}
            validate = build_validation(args, accelerator, objective, judge=judge, **known, **shown)

        # Training
        def losses(batch: dict, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            batch = objective.assemble(batch, step)
            norms_due = is_due(step, args.term_norms_every)
            norms = objective.term_norms(batch, scaler=accelerator.scaler) if norms_due else {}
            loss, terms = training_losses(batch, objective)
            return loss, terms | norms

        batches, stopped, newest = iter(loader), False, {}
        with (
            StopRequest(accelerator) as stop,
            progress(initial=first_step, total=total_steps, desc="Updates", disable=not is_main) as bar,
        ):
            for step in range(first_step + 1, total_steps + 1):
                values = update(args, step, batches, losses, objective=objective, accelerator=accelerator, **stepped)
                metrics.add(step, values)
                bar.update()
                is_last = step == total_steps
                checkpoint_due = is_last or is_due(step, args.checkpointing_steps)
                epoch = {"images_per_update": images_per_update, "num_rows": len(dataset)}
                validation_due = not is_last and (
                    is_due(step, args.validation_steps) or crosses_epoch(step, args.validation_epochs, **epoch)
                )
                if checkpoint_due or validation_due or is_due(step, args.logging_steps) or stop.requested_here:
                    for line in metrics.flush():
                        newest |= {name: f"{value:.3g}" for name, value in line.items() if "loss" in name}
                    bar.set_postfix(newest, refresh=False)
                    stopped = stop.agreed() and not is_last
                if checkpoint_due or stopped:
                    objective.check_prediction(step, seed=args.seed, resolution=args.resolution)
                    if is_main:
                        limit = args.checkpoints_total_limit
                        save_checkpoint(output_dir, step=step, model=model, state=state, total_limit=limit)
                if stopped:
                    break
                if validation_due and validate:
                    validate(step, final=False)
                if checkpoint_due or validation_due:
                    metrics.restart_clock()
        accelerator.wait_for_everyone()

        # Results
        if stopped:
            logger.warning("Stopped after update %d; --resume_from_checkpoint latest goes on from there.", step)
        else:
            if is_main:
                kohya_name = KOHYA_FILE.format(name)
                model.save_lora(output_dir, kohya_name=kohya_name)
                seal(output_dir, step=total_steps, names=[LORA_FILE, kohya_name])
            if validate:
                validate(total_steps, final=True)
            if is_main:
                metrics.warn_of_idle_loss(margin=resolved.margin)
                publish(output_dir, **hub)
                done = repo_id or output_dir
                said = 'Done. pipe.load_lora_weights("%s") puts it into a %s.'
                logger.info(said, done, family.pipeline_class)
        accelerator.end_training()


def update(
    args: argparse.Namespace,
    step: int,
    batches: Iterator[dict],
    losses: Callable[[dict, int], tuple[torch.Tensor, dict[str, torch.Tensor]]],
    *,
    objective: Objective,
    accelerator,
    parameters: list[torch.nn.Parameter],
    optimizer,
    lr_scheduler,
) -> dict[str, torch.Tensor | float]:
    """Do one update; returns its values, still on the device, as named in metrics.jsonl.

    losses(batch, step): the loss; by name its terms and what else is logged.  Nothing here waits for the device.
    """
    accumulation, sums = args.gradient_accumulation_steps, {}
    for micro_step in range(accumulation):
        is_last = micro_step == accumulation - 1  # whose backward pass alone is reduced over the processes
        with contextlib.nullcontext() if is_last else accelerator.no_sync(objective.model.trained):
            loss, terms = losses(next(batches), step)
            accelerator.backward(loss / accumulation)
        for term, value in terms.items():
            sums[term] = sums.get(term, 0) + value / accumulation
    grad_norm = accelerator.clip_grad_norm_(parameters, args.max_grad_norm)
    lr = lr_scheduler.get_last_lr()[0]
    optimizer.step()
    optimizer.zero_grad()
    lr_scheduler.step()
    terms = {term: sums.pop(term) for term in objective.weights if term in sums}
    by_name = {f"loss/{term}": value for term, value in terms.items()}
    return {"loss": weighted_sum(terms, objective.weights), **by_name, **sums, "lr": lr, "grad_norm": grad_norm}
