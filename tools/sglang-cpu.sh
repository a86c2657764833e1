#!/usr/bin/env bash
# Make a virtual environment in DIR where the real SGLang 0.5.23 server runs on CPU with a tiny dummy-weight model, for tests of
# its life cycle. Two shims stand in for what has no CPU wheel: torchvision (imported for type checks) and sgl_kernel (GPU kernels).
# Needs Python 3.11, 3 GB of disk, and a pip that finds a CPU build of torch 2.13.0 (PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL
# where its index has only those for CUDA). DIR/launch is written last: where it exists, the environment is whole.
# Usage: sglang-cpu.sh DIR   then   DIR/launch --port 31999 [more SGLang arguments]
set -euo pipefail
out=${1:?usage: sglang-cpu.sh DIR}; mkdir -p "$out/model"; out=$(cd "$out" && pwd)
python=${PYTHON:-python3.11}
if ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
  echo "sglang-cpu: $python is no Python 3.11, for which the versions are pinned; set PYTHON=/path/to/python3.11" >&2
  exit 1
fi
echo "sglang-cpu: installing SGLang 0.5.23 in $out (takes minutes) …" >&2
"$python" -m venv "$out/venv"
pins='
aiohappyeyeballs==2.7.1 aiohttp==3.14.5 aiosignal==1.4.0 airportsdata==20260905 annotated-doc==0.0.7 annotated-types==0.8.0 anyio==4.16.0 
apache-tvm-ffi==0.1.9 asttokens==3.0.2 attrs==26.1.0 certifi==2026.10.18 cffi==2.1.1 charset-normalizer==3.5.2 click==8.5.1 cloudpickle==3.1.2 
compressed-tensors==0.20.0 cryptography==50.0.2 deepseek-recipe==0.2.0 dill==0.4.1 diskcache==5.6.3 distro==1.9.0 docstring_parser==0.18.0 
einops==0.8.2 executing==2.3.0 fastapi==0.165.0 filelock==4.2.11 frozenlist==1.8.0 fsspec==2026.9.0 gguf==0.19.0 grpcio==1.85.1 h11==0.16.0 
hf-xet==1.8.0 httpcore==1.0.9 httpcore2==2.16.2 httpx==0.28.1 httpx2==2.16.2 huggingface_hub==1.33.0 idna==3.20 interegular==0.3.3 ipython==9.18.1 
ipython_pygments_lexers==1.1.1 jedi==0.20.1 Jinja2==3.1.6 jiter==0.19.0 jsonschema==4.26.0 jsonschema-specifications==2025.9.1 lark==1.3.1 
llguidance==1.9.1 loguru==0.7.3 markdown-it-py==4.3.0 MarkupSafe==3.0.4 matplotlib-inline==0.2.2 mdurl==0.1.2 mistral_common==1.13.1 mpmath==1.3.0 
msgpack==1.2.4 msgspec==0.22.0 multidict==7.2.1 nest-asyncio==1.6.0 networkx==3.6.1 ninja==1.13.2 numpy==2.3.5 nvidia-ml-py==13.615.71 openai==3.54.0 
openai-harmony==0.0.8 opentelemetry-api==1.45.2 orjson==3.13.0 outlines==0.1.11 outlines_core==0.1.26 packaging==26.3 pandas==3.1.1 parso==0.8.7 
partial-json-parser==0.2.1.1.post7 pexpect==4.9.0 pillow==13.0.0 prometheus_client==0.26.0 prompt_toolkit==3.0.53 propcache==0.5.4 protobuf==7.36.2 
psutil==7.2.2 ptyprocess==0.7.0 pure_eval==0.2.4 py-spy==0.4.1 pybase64==1.5.1 pycountry==26.2.16 pycparser==3.12 pydantic==2.14.3 pydantic-extra-types==2.11.1 
pydantic_core==2.50.4 Pygments==2.21.0 python-dateutil==4.0.0 python-multipart==0.0.34 PyYAML==6.0.3 pyzmq==27.3.0 referencing==0.37.0 
regex==2026.11.15 requests==2.34.2 rpds-py==2026.9.1 safetensors==0.8.0 scipy==1.17.1 sentencepiece==0.2.3 setproctitle==1.3.8 smg-grpc-proto==0.4.28 
sniffio==1.3.1 soundfile==0.14.0 stack-data==0.6.3 starlette==1.10.0 sympy==1.14.0 tiktoken==0.14.0 tokenizers==0.23.3 tomlkit==0.15.2 tqdm==4.70.1 
traitlets==5.16.1 transformers==5.19.0 triton==3.6.0 truststore==0.10.5 typing-inspection==0.4.5 typing_extensions==4.16.0 tzdata==2026.6 
urllib3==2.8.0 uvicorn==0.54.0 uvloop==0.23.0 wcwidth==0.9.4 xgrammar==0.2.1 xxhash==4.1.0 yarl==1.25.1 zstandard==0.25.0 
'
"$out/venv/bin/pip" install -q --no-deps torch==2.13.0 sglang==0.5.23 $pins
if ! "$out/venv/bin/python" -c 'import torch' 2>"$out/torch.err"; then
  tail -1 "$out/torch.err" >&2
  echo "sglang-cpu: this build of torch does not run here; have pip find a CPU build (PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL)" >&2
  exit 1
fi
rm -f "$out/torch.err"
site=$("$out/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
mkdir -p "$site/sgl_kernel" "$site/torchvision" "$site/torchvision-0.28.0.dist-info"
printf 'Metadata-Version: 2.1\nName: torchvision\nVersion: 0.28.0\n' >"$site/torchvision-0.28.0.dist-info/METADATA"
"$out/venv/bin/python" - "$site" "$out/model" <<'PY'
import json, pathlib, sys
site, model = map(pathlib.Path, sys.argv[1:])
lazy = '''"""Stand-in for %(name)s on a machine without it: any name imports; a call of an unprovided one fails."""
import importlib, importlib.abc, importlib.machinery, sys, types
__version__ = "%(version)s"


class _Anything(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _make(name)


def _make(name):
    def call(self, *args, **kwargs):
        %(body)s
    return _Anything(name, (), {"__init__": call})


class _Module(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        value = _make(name)
        setattr(self, name, value)
        return value


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        if name.startswith("%(name)s."):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        module = _Module(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module):
        pass


sys.meta_path.insert(0, _Finder())
'''
(site / "torchvision/__init__.py").write_text(lazy % dict(name="torchvision", version="0.28.0", body="return None") + '''

def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return importlib.import_module("torchvision." + name)
''')
(site / "sgl_kernel/__init__.py").write_text(
    lazy % dict(name="sgl_kernel", version="0.4.10", body='raise NotImplementedError("sgl_kernel stand-in: " + name)') + '''

def assign_req_to_token_pool_cpu(req_pool_indices, req_to_token, start, end, out_cache_loc, pool_len):
    """The one kernel a CPU run needs: write each request's new cache locations into the pool."""
    offset = 0
    for i in range(req_pool_indices.numel()):
        first, last, row = int(start[i]), int(end[i]), int(req_pool_indices[i])
        count = last - first
        req_to_token[row, first:last] = out_cache_loc[offset:offset + count].to(req_to_token.dtype)
        offset += count


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return _make(name)
''')
config = dict(architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=64, intermediate_size=128,
              num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2, vocab_size=512, max_position_embeddings=2048,
              rms_norm_eps=1e-5, rope_theta=10000.0, hidden_act="silu", tie_word_embeddings=False, torch_dtype="bfloat16",
              bos_token_id=1, eos_token_id=2, attention_bias=False, head_dim=16)
from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel
vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
for char in sorted(ByteLevel.alphabet()):
    vocab[char] = len(vocab)
tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
tokenizer.save(str(model / "tokenizer.json"))
template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
(model / "config.json").write_text(json.dumps(config))
(model / "tokenizer_config.json").write_text(json.dumps(dict(
    tokenizer_class="PreTrainedTokenizerFast", bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=2048,
    chat_template=template)))
PY
cat >"$out/launch" <<LAUNCH
#!/usr/bin/env bash
unset PYTHONDONTWRITEBYTECODE
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 SGLANG_USE_CPU_ENGINE=1
exec "$out/venv/bin/python" -m sglang.launch_server --model-path "$out/model" --load-format dummy --device cpu \\
  --attention-backend torch_native --sampling-backend pytorch --grammar-backend none --mem-fraction-static 0.5 \\
  --max-total-tokens 4096 "\$@"
LAUNCH
chmod +x "$out/launch"
(unset PYTHONDONTWRITEBYTECODE; "$out/venv/bin/python" -m compileall -q "$site/sglang/srt" "$site/transformers" "$site/torch" >/dev/null 2>&1 || true)
echo "$out/launch"
