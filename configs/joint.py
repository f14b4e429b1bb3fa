"""ResNetVLLM in two stages (arXiv 2504.14432, section 3): the visual encoder, then everything.

    python -m rvllm_jax.main --config=configs/joint.py          # tiny: two CPU cores, ten minutes
    python -m rvllm_jax.main --config=configs/joint.py:paper    # ResNet-50 + Vicuna-7B, 100 frames

Every key is overridden on the command line: --config.stages.joint.batch=16; --help and
rvllm_jax/config/KEYS.md have them all, with units and ranges. In `paper`, "our choice" marks what
the paper leaves open.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config(arg: str = "tiny") -> ConfigDict:
    """The configuration `tiny`, `paper` or `bench`."""
    recipes = {"tiny": _tiny, "paper": _paper, "bench": _bench}
    if arg not in recipes:
        raise ValueError(f"configs/joint.py:{arg} is unknown; choose one of {', '.join(recipes)}")
    return recipes[arg]()


MOMENTS = "float32"  # of sgd's momentum and adamw's first moment, or "bfloat16"


def _sgd(lr, decay):
    return dict(kind="sgd", lr=lr, decay=decay, momentum=0.9, moments=MOMENTS)


def _adamw(lr, decay, b2=0.999):
    return dict(kind="adamw", lr=lr, decay=decay, b1=0.9, b2=b2, eps=1e-8, moments=MOMENTS)


def _stage(**keys):
    """A stage with the usual settings of its less usual keys."""
    usual = dict(
        input="video",  # or "caption_in_slot": the caption's text in the video's place
        steps=0,  # updates; or
        epochs=0,  # passes over the training pairs
        accumulate=1,  # micro-batches an update
        warmup=0,  # updates of linear warm-up
        schedule="cosine",  # to zero, or "constant"
        clip=1.0,  # largest global gradient norm; 0: none
        freeze_stats=False,  # True: BatchNorm uses and keeps its running statistics
        lora=dict(  # with a rank the decoder is frozen, and adapters beside its matrices train by
            rank=placeholder(int),  # the table's row of "decoder/layers/.*/lora/.*"; unset: none
            alpha=16.0,  # A B is scaled by alpha / rank
            targets="attention/(q|v)",  # regex of attention/q, k, v, o, mlp/gate, up and down
        ),
    )
    return {**usual, **keys}


ENCODER = r"(encoder|projector)/.*"  # stage 1; r"encoder/.*" trains "exclusively the ResNet"


def _tiny() -> ConfigDict:
    config = ConfigDict()
    config.name = "tiny"
    config.seed = 0  # of parameters and of the order of the data
    config.schedule = "language,visual,joint"  # stages to run, in this order
    config.parallel = "jit"  # over the mesh below, or "pmap": replicated
    config.mesh = dict(data=-1, fsdp=1, tensor=1)  # devices an axis; -1: all that remain
    config.data = dict(
        videos="shapes",  # a folder of videos, or "shapes": the embedded dataset
        conversations="",  # LLaVA JSON of the training videos
        validation="",  # LLaVA JSON; none: validation loss on training pairs
        test="",  # LLaVA JSON; none: only training pairs are asked
        store="runs/data",  # folder of the prepared frame stores
        max_bad=0.02,  # largest share of videos that may fail to decode
        frames=6,  # T, frames a clip
        interval=6,  # video frames from one frame of a clip to the next
        stride=2,  # video frames from one stored frame to the next; divides `interval`
        short="stretch",  # T frames over all of a video too short for them; or "pad", "loop"
        long="window",  # T frames at `interval`, from one start; or "spread": over all of a video
        short_side=36,  # pixels, of the stored frames
        crop=32,  # pixels, of a clip's frames
        flip=False,  # True: half of the training clips mirrored, where no answer says left or right
        encoding="raw",  # or "jpeg"
        frames_per_record=17,  # stored frames a record
        context=144,  # L, tokens a row
        questions=15,  # most question-answer segments packed behind one video
        independent_turns=True,  # False: the turns of a dialogue see one another
        template="short",  # or vicuna_v1, llava_v1, plain, llama-2-chat, llama-3, chatml, folder
        workers=0,  # processes that load data; 0: threads of the main one
    )
    config.tokenizer = dict(
        folder="",  # of tokenizer.json or tokenizer.model; none: trained on the training text
        vocab_size=512,  # tokens, of a trained one
    )
    config.model = dict(
        encoder="narrow",  # or resnet18, resnet34, resnet50, resnet101, resnet152
        norm="batch",  # or "group"
        tokens="grid",  # or "global" (the paper), "spatiotemporal"
        grid=2,  # places a side
        projector="linear",  # or "mlp2x_gelu"
        decoder="tiny",  # or small, vicuna-7b, vicuna-13b, llama-3.2-1b, tinyllama-1.1b,
        # smollm2-135m; or a folder whose config.json has the sizes
        dtype="float32",  # of computation, and of frozen parameters
        remat="none",  # recompute in the backward pass: "none", "dots", "full"
        loss_chunk=0,  # places of every row whose logits exist at once; 0: all
        weights="",  # folders to start from, separated by commas; none: random (convert.py)
        random="",  # regex of the parameters that those folders lack and that may be random
    )
    config.stages = dict(
        language=_stage(  # stands in for Vicuna's pretraining
            input="caption_in_slot",
            steps=150,
            batch=16,
            warmup=20,
            table=(("decoder/.*", "adamw"), (".*", "frozen")),
            optimizers=dict(adamw=_adamw(2e-3, 0.01)),
        ),
        visual=_stage(
            steps=100,
            batch=16,
            warmup=20,
            table=((ENCODER, "sgd"), (".*", "frozen")),
            optimizers=dict(sgd=_sgd(0.3, 1e-4)),
        ),
        joint=_stage(
            steps=1200,
            batch=16,
            warmup=50,
            table=(("(encoder|projector)/.*", "visual"), (".*", "language")),
            optimizers=dict(
                visual=_adamw(3e-3, 0.05, b2=0.98), language=_adamw(2e-3, 0.05, b2=0.98)
            ),
        ),
    )
    config.evaluation = dict(
        every=200,  # updates between two validation losses
        clips=64,  # videos of a validation loss
        probe_videos=16,  # validation videos asked beside each validation loss
        train_videos=200,  # training videos asked at the end
        batch=16,  # videos asked at once
        test_clips="1x1",  # starts x crops a video, asked at the end; or "25x1", "5x5"
        max_new=48,  # tokens an answer
        controls=True,  # also ask blind, with shuffled frames and with another video's
        fusion="lock_step",  # of several test clips' probabilities into one answer; or "vote"
    )
    config.checkpoint = dict(every=500, keep=2)  # updates between two; how many are kept
    config.log_every = 10  # updates
    config.max_skipped = 10  # updates in a row without a finite loss and gradient, then it stops
    config.max_unreadable = 100  # rows of a stage whose stored frames are damaged, then it stops
    return config


def _paper() -> ConfigDict:
    config = _tiny()
    config.name = "paper"
    config.schedule = "visual,joint"
    config.mesh = dict(data=1, fsdp=-1, tensor=1)  # changes no result: each chip holds a part
    with config.unlocked():
        config.data.update(
            videos="data/video_instruct_100k/videos",  # our choice, as Video-ChatGPT
            conversations="data/video_instruct_100k/train.json",  # our choice
            frames=100,
            interval=6,
            stride=6,  # changes no result: no other frame is read
            short="stretch",  # our choice
            long="window",  # our choice; the paper gives the interval
            short_side=256,  # our choice
            crop=224,
            flip=False,  # our choice
            encoding="jpeg",  # our choice
            frames_per_record=8,  # changes no result
            context=2048,  # our choice
            questions=7,  # our choice
            independent_turns=False,  # our choice, as LLaVA
            template="vicuna_v1",  # our choice, as LLaVA
            workers=16,  # changes no result
        )
        config.tokenizer.folder = "weights/vicuna-7b-v1.5"  # our choice, with the decoder
        config.model.update(
            encoder="resnet50",  # the paper says "2D ResNet"; the depth is our choice
            norm="batch",  # our choice
            tokens="global",
            projector="linear",  # our choice
            weights="weights/vicuna-7b-v1.5",  # our choice
            random="(encoder|projector)/.*",  # the paper: no pretraining
            decoder="vicuna-7b",  # "LLaVA-based": size and checkpoint (v1.5) are our choice
            dtype="bfloat16",  # our choice
            remat="full",  # changes no result
            loss_chunk=1024,  # changes no result
        )
        config.stages = dict(
            visual=_stage(
                epochs=150,
                batch=64,  # our choice
                warmup=500,  # our choice
                schedule="cosine",  # our choice
                clip=1.0,  # our choice
                table=((ENCODER, "sgd"), (".*", "frozen")),  # training the projector: our choice
                optimizers=dict(sgd=_sgd(0.01, 1e-4)),  # momentum 0.9: our choice
            ),
            joint=_stage(
                epochs=50,
                batch=64,  # our choice
                warmup=500,  # our choice
                schedule="cosine",  # our choice
                clip=1.0,  # our choice
                table=((".*", "adamw"),),
                optimizers=dict(adamw=_adamw(1.5e-4, 0.05)),  # betas 0.9 and 0.999: our choice
            ),
        )
        config.evaluation.update(every=1000, clips=512, batch=64, max_new=128)  # our choice
        config.evaluation.test_clips = "25x1"  # "25 clips"; how they are fused is our choice
        config.checkpoint.every = 1000  # changes no result
    return config


def _bench() -> ConfigDict:
    """What `python -m rvllm_jax.bench step` measures: large enough to tell, for two CPU cores."""
    config = _tiny()
    config.name = "bench"
    config.schedule = "visual,joint"
    config.data.update(frames=16, short_side=128, crop=112, context=16 + 64, questions=1)
    config.model.update(encoder="resnet18", tokens="global", decoder="small")
    for name in ("visual", "joint"):
        config.stages[name].batch = 4
    return config
