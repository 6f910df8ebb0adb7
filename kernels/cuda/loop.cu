// A whole round as one CUDA graph: copy in, vision, prefill, draft, WHILE some sample is unfinished { pass, tail }, copy
// out. The loop is a conditional node: the device decides whether there is another pass, and the host launches once.
//
// Every node is a kernel, the loop aside: copies go through pinned host memory that kernels read and write, and times are
// read from the GPU's clock. With copy and event nodes rounds of a small policy took 3 to 8 % longer (bench/results); the
// host's time to launch was the same.
//
// The parts are graphs that others captured (torch.cuda.CUDAGraph.raw_cuda_graph()); they are cloned in here as child
// graphs, so the memory that they work on has to outlive the round, the graphs themselves need not. Plain C ABI,
// loaded by ctypes: one build serves every torch and Python version. Needs CUDA 12.4 or newer.
#include <cuda_runtime.h>

#include <cstdio>
#include <new>

namespace {

thread_local char message[512] = "";

bool failed(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return false;
  std::snprintf(message, sizeof message, "%s: %s (%s)", what, cudaGetErrorString(status), cudaGetErrorName(status));
  cudaGetLastError();  // a sticky error would show up in the next call of somebody else
  return true;
}

#define TRY(call)                       \
  do {                                  \
    if (failed((call), #call)) return 1; \
  } while (0)

// One warp. Another pass as long as any of the samples is unfinished.
__global__ void set_condition(cudaGraphConditionalHandle again, const int* finished, int batch) {
  bool unfinished = false;
  for (int b = threadIdx.x; b < batch; b += 32) unfinished |= finished[b] == 0;
  unfinished = __any_sync(0xffffffffu, unfinished);
  if (threadIdx.x == 0) cudaGraphSetConditional(again, unfinished ? 1 : 0);
}

__device__ long long nanoseconds() {
  long long now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

__global__ void take_time(volatile long long* mark) { *mark = nanoseconds(); }

// Sizes and addresses are multiples of 16 (torch's pinned and device memory, padded by runtime/packed.py).
__global__ void copy_words(uint4* target, const uint4* source, size_t words) {
  const size_t step = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t i = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < words; i += step) {
    target[i] = source[i];
  }
}

cudaError_t add_node(cudaGraphNode_t* node, cudaGraph_t graph, const cudaGraphNode_t* after, cudaGraphNodeParams* params) {
#if CUDART_VERSION >= 13000
  return cudaGraphAddNode(node, graph, after, nullptr, after ? 1 : 0, params);
#else
  return cudaGraphAddNode(node, graph, after, after ? 1 : 0, params);
#endif
}

// Appends nodes to a graph one behind the other.
struct Chain {
  static constexpr unsigned THREADS = 256, BLOCKS = 128;

  cudaGraph_t graph;
  cudaGraphNode_t last = nullptr;

  const cudaGraphNode_t* after() const { return last ? &last : nullptr; }
  size_t count() const { return last ? 1 : 0; }

  int child(cudaGraph_t part) {
    cudaGraphNode_t node;
    TRY(cudaGraphAddChildGraphNode(&node, graph, after(), count(), part));
    last = node;
    return 0;
  }
  int kernel(const void* function, unsigned blocks, unsigned threads, void** arguments) {
    cudaGraphNodeParams params = {};
    params.type = cudaGraphNodeTypeKernel;
    params.kernel.func = const_cast<void*>(function);
    params.kernel.gridDim = dim3(blocks);
    params.kernel.blockDim = dim3(threads);
    params.kernel.kernelParams = arguments;
    cudaGraphNode_t node;
    TRY(add_node(&node, graph, after(), &params));
    last = node;
    return 0;
  }
  int copy(void* target, const void* source, size_t bytes) {
    size_t words = bytes / sizeof(uint4);
    if (words == 0) return 0;
    void* arguments[] = {&target, &source, &words};
    const size_t blocks = (words + THREADS - 1) / THREADS;
    return kernel(reinterpret_cast<const void*>(copy_words), blocks < BLOCKS ? blocks : BLOCKS, THREADS, arguments);
  }
  int take_time(long long* mark) {
    void* arguments[] = {&mark};
    return kernel(reinterpret_cast<const void*>(::take_time), 1, 1, arguments);
  }
  int loop_while(cudaGraphConditionalHandle again, cudaGraph_t* body) {
    cudaGraphNodeParams params = {};
    params.type = cudaGraphNodeTypeConditional;
    params.conditional.handle = again;
    params.conditional.type = cudaGraphCondTypeWhile;
    params.conditional.size = 1;
    cudaGraphNode_t node;
    TRY(add_node(&node, graph, after(), &params));
    *body = params.conditional.phGraph_out[0];
    last = node;
    return 0;
  }
  int condition(cudaGraphConditionalHandle again, const int* finished, int batch) {
    void* arguments[] = {&again, &finished, &batch};
    return kernel(reinterpret_cast<const void*>(set_condition), 1, 32, arguments);
  }
};

struct Round {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  cudaStream_t stream = nullptr;  // of the last launch
  long long* times = nullptr;  // pinned: start, after the copy in, after every head part, after the loop, end
  size_t marks = 0;

  ~Round() {
    if (exec) cudaGraphExecDestroy(exec);
    if (graph) cudaGraphDestroy(graph);
    if (times) cudaFreeHost(times);
  }

  int mark(Chain& chain) {
    long long* mapped;
    TRY(cudaHostGetDevicePointer(reinterpret_cast<void**>(&mapped), times, 0));
    return chain.take_time(mapped + marks++);
  }
};

}  // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

// Field by field `Spec` of __init__.py.
struct RsdRoundSpec {
  void* const* head;  // cudaGraph_t, run once, in order
  void* const* body;  // cudaGraph_t, run once a pass, in order
  const int* finished;
  void* inputs;  // on the device
  const void* host_inputs;
  void* host_outputs;
  const void* outputs;  // on the device
  long long heads, bodies, batch, input_bytes, output_bytes;
};

static int build(const RsdRoundSpec& spec, Round& round) {
  if (spec.input_bytes % sizeof(uint4) || spec.output_bytes % sizeof(uint4)) {
    return failed(cudaErrorInvalidValue, "buffers of a multiple of 16 bytes");
  }
  void *host_inputs, *host_outputs;
  TRY(cudaHostGetDevicePointer(&host_inputs, const_cast<void*>(spec.host_inputs), 0));
  TRY(cudaHostGetDevicePointer(&host_outputs, spec.host_outputs, 0));
  TRY(cudaHostAlloc(reinterpret_cast<void**>(&round.times), (spec.heads + 4) * sizeof(long long), cudaHostAllocMapped));
  TRY(cudaGraphCreate(&round.graph, 0));
  Chain chain{round.graph};
  cudaGraphConditionalHandle again;
  // Every launch starts with the condition true.
  TRY(cudaGraphConditionalHandleCreate(&again, round.graph, 1, cudaGraphCondAssignDefault));
  if (round.mark(chain)) return 1;
  if (chain.copy(spec.inputs, host_inputs, spec.input_bytes)) return 1;
  if (round.mark(chain)) return 1;
  for (long long i = 0; i < spec.heads; ++i) {
    if (chain.child(static_cast<cudaGraph_t>(spec.head[i])) || round.mark(chain)) return 1;
  }
  cudaGraph_t inside;
  if (chain.loop_while(again, &inside)) return 1;
  Chain pass{inside};
  for (long long i = 0; i < spec.bodies; ++i) {
    if (pass.child(static_cast<cudaGraph_t>(spec.body[i]))) return 1;
  }
  if (pass.condition(again, spec.finished, static_cast<int>(spec.batch))) return 1;
  if (round.mark(chain)) return 1;
  if (chain.copy(host_outputs, spec.outputs, spec.output_bytes)) return 1;
  if (round.mark(chain)) return 1;
  TRY(cudaGraphInstantiate(&round.exec, round.graph, 0));
  return 0;
}

EXPORT const char* rsd_last_error() { return message; }

// 0 where the driver can run conditional nodes, else 1 with a message.
EXPORT int rsd_check_driver() {
  int driver = 0;
  TRY(cudaDriverGetVersion(&driver));
  if (driver == 0) {
    std::snprintf(message, sizeof message, "there is no NVIDIA driver");
    return 1;
  }
  if (driver < 12040) {
    std::snprintf(message, sizeof message, "the driver speaks CUDA %d.%d, conditional graph nodes need 12.4",
                  driver / 1000, driver % 1000 / 10);
    return 1;
  }
  return 0;
}

EXPORT int rsd_round_create(const RsdRoundSpec* spec, void** out) {
  Round* round = new (std::nothrow) Round;
  if (!round) return failed(cudaErrorMemoryAllocation, "new Round");
  if (build(*spec, *round)) {
    delete round;
    return 1;
  }
  *out = round;
  return 0;
}

EXPORT int rsd_round_upload(void* round, void* stream) {
  TRY(cudaGraphUpload(static_cast<Round*>(round)->exec, static_cast<cudaStream_t>(stream)));
  return 0;
}

EXPORT int rsd_round_launch(void* handle, void* stream) {
  Round* round = static_cast<Round*>(handle);
  round->stream = static_cast<cudaStream_t>(stream);
  TRY(cudaGraphLaunch(round->exec, round->stream));
  return 0;
}

// Waits until the last launch has ended, its results on the host included, and whatever else that stream was given.
// By the stream: an event would be a second call in every launch.
EXPORT int rsd_round_wait(void* round) {
  TRY(cudaStreamSynchronize(static_cast<Round*>(round)->stream));
  return 0;
}

// Milliseconds between the marks of the last launch, which has ended: copy in, every head part, loop, copy out.
EXPORT int rsd_round_times(void* handle, float* milliseconds) {
  const Round* round = static_cast<Round*>(handle);
  for (size_t i = 0; i + 1 < round->marks; ++i) milliseconds[i] = 1e-6f * (round->times[i + 1] - round->times[i]);
  return 0;
}

EXPORT void rsd_round_destroy(void* round) { delete static_cast<Round*>(round); }
