/* A libcuda.so.1 for tests without a GPU: device memory is host memory, and whatever is queued runs at once.
 *
 * It is strict where a driver is: a call without a current context, a double free, an unknown handle or a wait
 * inside a capture fail with the driver's codes. It has the functions that cuda-core and PyCUDA call for what we
 * ask of them; of all others cuGetProcAddress says that there are none.
 *
 * Variables: TESO_STUB_DEVICES (1), TESO_STUB_DRIVER_VERSION (13000), TESO_STUB_MEMORY_BYTES (2^30).
 * One kernel can run, whatever the code that holds it says: scale(float *out, const float *in, float factor,
 * unsigned n). A kernel is there if the PTX has an ".entry" of its name.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef int CUresult;
typedef unsigned long long ptr_t;
enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101,
       INVALID_IMAGE = 200, INVALID_CONTEXT = 201, NO_BINARY_FOR_GPU = 209, INVALID_HANDLE = 400, NOT_FOUND = 500,
       NOT_READY = 600, NOT_SUPPORTED = 801, CONTEXT_IS_DESTROYED = 709, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901, CAPTURE_UNMATCHED = 903 };

#define API __attribute__((visibility("default")))
#define MAX_DEVICES 4
#define CHECK(condition, code) do { if (!(condition)) return (code); } while (0)
#define NEED_CONTEXT CHECK(depth > 0 && stack[depth - 1], INVALID_CONTEXT)

/* One lock around what threads share: lists and counters. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

struct block { ptr_t pointer; size_t size; int is_host; struct block *next; };
struct operation { int is_kernel; void *target; const void *source; size_t nbytes; float factor; struct operation *next; };
struct graph { struct operation *first, **last; };
struct stream { unsigned magic, flags; struct graph *capturing; int is_invalid; };
struct event { unsigned magic, flags; double milliseconds; int is_recorded; };
struct module { char *code; };
struct kernel { int is_scale; };
struct context { int device; };

static struct block *blocks;
static size_t used_bytes;
static int live_device, live_host, live_streams, live_events, live_graphs, live_modules, bad_frees, launches, waits, syncs;
static int retained[MAX_DEVICES], is_initialized;
static struct context primary[MAX_DEVICES] = {{0}, {1}, {2}, {3}};
static struct stream default_stream;
static __thread struct context *stack[64];
static __thread int depth;

static size_t number(const char *name, size_t otherwise) {
    const char *text = getenv(name);
    return text ? strtoull(text, NULL, 10) : otherwise;
}
static size_t total_bytes(void) { return number("TESO_STUB_MEMORY_BYTES", (size_t)1 << 30); }
static int device_count(void) { return (int)number("TESO_STUB_DEVICES", 1); }
static void count(int *counter, int by) { pthread_mutex_lock(&lock); *counter += by; pthread_mutex_unlock(&lock); }

/* --- for the tests ------------------------------------------------------------------------------------------- */

API int teso_stub_live(const char *what) {
    const struct { const char *name; int value; } counters[] = {
        {"memory", live_device}, {"pinned", live_host}, {"streams", live_streams}, {"events", live_events},
        {"graphs", live_graphs}, {"modules", live_modules}, {"bad_frees", bad_frees}, {"launches", launches},
        {"waits", waits}, {"syncs", syncs}, {"contexts", depth}, {"retained", retained[0]}};
    for (size_t i = 0; i < sizeof counters / sizeof *counters; i++)
        if (!strcmp(what, counters[i].name)) return counters[i].value;
    return -1;
}

/* --- start, devices ------------------------------------------------------------------------------------------ */

API CUresult cuInit(unsigned flags) {
    CHECK(!flags, INVALID_VALUE);
    CHECK(device_count() > 0, NO_DEVICE);
    is_initialized = 1;
    return SUCCESS;
}
API CUresult cuDriverGetVersion(int *version) {
    *version = (int)number("TESO_STUB_DRIVER_VERSION", 13000);
    return SUCCESS;
}
API CUresult cuGetErrorName(CUresult code, const char **text) {
    static __thread char name[32];
    snprintf(name, sizeof name, code == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR_%d", code);
    *text = name;
    return SUCCESS;
}
API CUresult cuGetErrorString(CUresult code, const char **text) { return cuGetErrorName(code, text); }

API CUresult cuDeviceGetCount(int *devices) {
    CHECK(is_initialized, NOT_INITIALIZED);
    *devices = device_count();
    return SUCCESS;
}
API CUresult cuDeviceGet(int *device, int index) {
    CHECK(is_initialized, NOT_INITIALIZED);
    CHECK(index >= 0 && index < device_count(), INVALID_DEVICE);
    *device = index;
    return SUCCESS;
}
API CUresult cuDeviceGetName(char *name, int size, int device) {
    snprintf(name, size, "Stub %d", device);
    return SUCCESS;
}
API CUresult cuDeviceTotalMem_v2(size_t *bytes, int device) { (void)device; *bytes = total_bytes(); return SUCCESS; }
API CUresult cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    *value = attribute == 75 ? 9 : attribute == 76 ? 0 : attribute == 41; /* capability 9.0, unified addressing */
    return SUCCESS;
}
API CUresult cuDeviceComputeCapability(int *major, int *minor, int device) {
    (void)device;
    *major = 9, *minor = 0;
    return SUCCESS;
}

/* --- contexts ------------------------------------------------------------------------------------------------ */

API CUresult cuDevicePrimaryCtxRetain(struct context **context, int device) {
    CHECK(is_initialized, NOT_INITIALIZED);
    CHECK(device >= 0 && device < device_count(), INVALID_DEVICE);
    count(&retained[device], 1);
    *context = &primary[device];
    return SUCCESS;
}
API CUresult cuDevicePrimaryCtxRelease_v2(int device) {
    CHECK(retained[device] > 0, INVALID_CONTEXT);
    count(&retained[device], -1);
    return SUCCESS;
}
API CUresult cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
    *flags = 0, *active = retained[device] > 0;
    return SUCCESS;
}
API CUresult cuCtxGetCurrent(struct context **context) { *context = depth ? stack[depth - 1] : NULL; return SUCCESS; }
API CUresult cuCtxSetCurrent(struct context *context) {
    if (!context) depth -= depth > 0;
    else stack[depth ? depth - 1 : depth++] = context;
    return SUCCESS;
}
API CUresult cuCtxPushCurrent_v2(struct context *context) {
    CHECK(context && depth < 64, INVALID_CONTEXT);
    CHECK(retained[context->device], CONTEXT_IS_DESTROYED);
    stack[depth++] = context;
    return SUCCESS;
}
API CUresult cuCtxPopCurrent_v2(struct context **context) {
    CHECK(depth > 0, INVALID_CONTEXT);
    depth--;
    if (context) *context = stack[depth];
    return SUCCESS;
}
API CUresult cuCtxGetDevice(int *device) { NEED_CONTEXT; *device = stack[depth - 1]->device; return SUCCESS; }
API CUresult cuCtxSynchronize(void) { NEED_CONTEXT; return SUCCESS; }
API CUresult cuCtxGetApiVersion(struct context *context, unsigned *version) {
    (void)context;
    *version = 13000;
    return SUCCESS;
}
API CUresult cuCtxGetStreamPriorityRange(int *least, int *greatest) {
    NEED_CONTEXT;
    *least = 0, *greatest = -5;
    return SUCCESS;
}

/* --- memory -------------------------------------------------------------------------------------------------- */

static CUresult take(ptr_t *pointer, size_t size, int is_host) {
    NEED_CONTEXT;
    CHECK(size, INVALID_VALUE);
    pthread_mutex_lock(&lock);
    CUresult code = OUT_OF_MEMORY;
    if (is_host || (size <= total_bytes() && used_bytes <= total_bytes() - size)) {
        struct block *block = malloc(sizeof *block);
        *block = (struct block){(ptr_t)aligned_alloc(256, (size + 255) / 256 * 256), size, is_host, blocks};
        memset((void *)block->pointer, 0xa5, size);
        blocks = block;
        *pointer = block->pointer;
        *(is_host ? &live_host : &live_device) += 1;
        used_bytes += is_host ? 0 : size;
        code = SUCCESS;
    }
    pthread_mutex_unlock(&lock);
    return code;
}
static CUresult give(ptr_t pointer, int is_host) {
    NEED_CONTEXT;
    CUresult code = INVALID_VALUE;
    pthread_mutex_lock(&lock);
    for (struct block **at = &blocks; *at; at = &(*at)->next)
        if ((*at)->pointer == pointer && (*at)->is_host == is_host) {
            struct block *found = *at;
            *at = found->next;
            *(is_host ? &live_host : &live_device) -= 1;
            used_bytes -= is_host ? 0 : found->size;
            free((void *)found->pointer);
            free(found);
            code = SUCCESS;
            break;
        }
    bad_frees += code != SUCCESS;
    pthread_mutex_unlock(&lock);
    return code;
}
API CUresult cuMemAlloc_v2(ptr_t *pointer, size_t size) { return take(pointer, size, 0); }
API CUresult cuMemFree_v2(ptr_t pointer) { return give(pointer, 0); }
API CUresult cuMemAllocHost_v2(void **pointer, size_t size) { return take((ptr_t *)pointer, size, 1); }
API CUresult cuMemHostAlloc(void **pointer, size_t size, unsigned flags) {
    (void)flags;
    return take((ptr_t *)pointer, size, 1);
}
API CUresult cuMemFreeHost(void *pointer) { return give((ptr_t)pointer, 1); }
API CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    NEED_CONTEXT;
    *total = total_bytes();
    *free_bytes = *total - used_bytes;
    return SUCCESS;
}
/* Whether all of it lies in one block that is allocated. */
static int is_inside(ptr_t pointer, size_t nbytes) {
    int is_found = 0;
    pthread_mutex_lock(&lock);
    for (struct block *block = blocks; block && !is_found; block = block->next)
        is_found = !block->is_host && pointer >= block->pointer && pointer + nbytes <= block->pointer + block->size;
    pthread_mutex_unlock(&lock);
    return is_found;
}
static CUresult pointer_attribute(void *data, int attribute, ptr_t pointer) {
    int is_device = 0, is_host = 0;
    pthread_mutex_lock(&lock);
    for (struct block *block = blocks; block; block = block->next)
        if (pointer >= block->pointer && pointer < block->pointer + block->size)
            is_host = block->is_host, is_device = !is_host;
    pthread_mutex_unlock(&lock);
    if (attribute == 2) *(unsigned *)data = is_device ? 2 : is_host ? 1 : 0; /* memory type */
    else if (attribute == 8) *(unsigned *)data = 0;                         /* managed */
    else if (attribute == 9) *(int *)data = is_device || is_host ? 0 : -2;  /* device */
    else return INVALID_VALUE;
    return SUCCESS;
}
API CUresult cuPointerGetAttribute(void *data, int attribute, ptr_t pointer) {
    CUresult code = pointer_attribute(data, attribute, pointer);
    return code == SUCCESS && attribute == 2 && !*(unsigned *)data ? INVALID_VALUE : code;
}
API CUresult cuPointerGetAttributes(unsigned number_of, int *attributes, void **data, ptr_t pointer) {
    for (unsigned i = 0; i < number_of; i++) CHECK(pointer_attribute(data[i], attributes[i], pointer) == SUCCESS, INVALID_VALUE);
    return SUCCESS;
}

/* --- streams, and what is queued on them --------------------------------------------------------------------- */

#define STREAM_MAGIC 0x57a3u
#define EVENT_MAGIC 0xe7e7u

static struct stream *stream_of(struct stream *stream) {
    if ((uintptr_t)stream <= 2) return default_stream.magic = STREAM_MAGIC, &default_stream;
    return stream->magic == STREAM_MAGIC ? stream : NULL;
}
static CUresult perform(const struct operation *work) {
    if (!work->is_kernel) memmove(work->target, work->source, work->nbytes);
    else
        for (size_t i = 0; i < work->nbytes; i++) ((float *)work->target)[i] = ((const float *)work->source)[i] * work->factor;
    return SUCCESS;
}
static CUresult queue(struct stream *handle, struct operation work) {
    NEED_CONTEXT;
    struct stream *stream = stream_of(handle);
    CHECK(stream, INVALID_HANDLE);
    if (!stream->capturing) return perform(&work);
    CHECK(!stream->is_invalid, CAPTURE_INVALIDATED);
    *stream->capturing->last = memcpy(malloc(sizeof work), &work, sizeof work);
    stream->capturing->last = &(*stream->capturing->last)->next;
    return SUCCESS;
}
/* What no capture may hold: it fails, and the capture with it. */
static CUresult forbid_in_capture(struct stream *stream) {
    CHECK(stream->capturing, SUCCESS);
    stream->is_invalid = 1;
    return CAPTURE_UNSUPPORTED;
}

API CUresult cuStreamCreateWithPriority(struct stream **stream, unsigned flags, int priority) {
    NEED_CONTEXT;
    (void)priority;
    *stream = calloc(1, sizeof **stream);
    (*stream)->magic = STREAM_MAGIC, (*stream)->flags = flags;
    count(&live_streams, 1);
    return SUCCESS;
}
API CUresult cuStreamCreate(struct stream **stream, unsigned flags) { return cuStreamCreateWithPriority(stream, flags, 0); }
API CUresult cuStreamDestroy_v2(struct stream *stream) {
    CHECK(stream->magic == STREAM_MAGIC, INVALID_HANDLE);
    stream->magic = 0;
    free(stream);
    count(&live_streams, -1);
    return SUCCESS;
}
API CUresult cuStreamGetFlags(struct stream *stream, unsigned *flags) {
    CHECK(stream_of(stream), INVALID_HANDLE);
    *flags = stream_of(stream)->flags;
    return SUCCESS;
}
API CUresult cuStreamGetPriority(struct stream *stream, int *priority) { (void)stream; *priority = 0; return SUCCESS; }
API CUresult cuStreamGetCtx(struct stream *stream, struct context **context) {
    (void)stream;
    *context = &primary[0];
    return SUCCESS;
}
API CUresult cuStreamGetDevice(struct stream *stream, int *device) { (void)stream; *device = 0; return SUCCESS; }
API CUresult cuStreamSynchronize(struct stream *handle) {
    NEED_CONTEXT;
    CHECK(stream_of(handle), INVALID_HANDLE);
    count(&syncs, 1);
    return forbid_in_capture(stream_of(handle));
}
API CUresult cuStreamQuery(struct stream *handle) { return cuStreamSynchronize(handle); }

static CUresult copy(ptr_t target, ptr_t source, size_t nbytes, struct stream *stream) {
    return queue(stream, (struct operation){0, (void *)target, (const void *)source, nbytes, 0, NULL});
}
API CUresult cuMemcpyHtoDAsync_v2(ptr_t target, const void *source, size_t nbytes, struct stream *stream) {
    CHECK(is_inside(target, nbytes), INVALID_VALUE);
    return copy(target, (ptr_t)source, nbytes, stream);
}
API CUresult cuMemcpyDtoHAsync_v2(void *target, ptr_t source, size_t nbytes, struct stream *stream) {
    CHECK(is_inside(source, nbytes), INVALID_VALUE);
    return copy((ptr_t)target, source, nbytes, stream);
}
API CUresult cuMemcpyDtoDAsync_v2(ptr_t target, ptr_t source, size_t nbytes, struct stream *stream) {
    CHECK(is_inside(target, nbytes) && is_inside(source, nbytes), INVALID_VALUE);
    return copy(target, source, nbytes, stream);
}

/* --- events -------------------------------------------------------------------------------------------------- */

API CUresult cuEventCreate(struct event **event, unsigned flags) {
    NEED_CONTEXT;
    *event = calloc(1, sizeof **event);
    (*event)->magic = EVENT_MAGIC, (*event)->flags = flags;
    count(&live_events, 1);
    return SUCCESS;
}
API CUresult cuEventDestroy_v2(struct event *event) {
    CHECK(event->magic == EVENT_MAGIC, INVALID_HANDLE);
    event->magic = 0;
    free(event);
    count(&live_events, -1);
    return SUCCESS;
}
API CUresult cuEventRecord(struct event *event, struct stream *stream) {
    NEED_CONTEXT;
    CHECK(event->magic == EVENT_MAGIC && stream_of(stream), INVALID_HANDLE);
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    event->milliseconds = now.tv_sec * 1e3 + now.tv_nsec * 1e-6;
    event->is_recorded = 1;
    return SUCCESS;
}
API CUresult cuEventRecordWithFlags(struct event *event, struct stream *stream, unsigned flags) {
    (void)flags;
    return cuEventRecord(event, stream);
}
API CUresult cuEventSynchronize(struct event *event) {
    NEED_CONTEXT;
    return event->magic == EVENT_MAGIC ? SUCCESS : INVALID_HANDLE;
}
API CUresult cuEventQuery(struct event *event) { return cuEventSynchronize(event); }
API CUresult cuEventElapsedTime_v2(float *milliseconds, struct event *start, struct event *end) {
    CHECK(!(start->flags & 2) && !(end->flags & 2) && start->is_recorded && end->is_recorded, INVALID_HANDLE);
    *milliseconds = (float)(end->milliseconds - start->milliseconds);
    return SUCCESS;
}
/* As libraries that were built for CUDA 12 know it. */
API CUresult cuEventElapsedTime(float *milliseconds, struct event *start, struct event *end) {
    return cuEventElapsedTime_v2(milliseconds, start, end);
}
API CUresult cuStreamWaitEvent(struct stream *stream, struct event *event, unsigned flags) {
    NEED_CONTEXT;
    (void)flags;
    count(&waits, 1);
    return stream_of(stream) && event->magic == EVENT_MAGIC ? SUCCESS : INVALID_HANDLE;
}

/* --- graphs -------------------------------------------------------------------------------------------------- */

static struct graph *new_graph(void) {
    struct graph *graph = calloc(1, sizeof *graph);
    graph->last = &graph->first;
    count(&live_graphs, 1);
    return graph;
}
API CUresult cuStreamBeginCapture_v2(struct stream *stream, int mode) {
    NEED_CONTEXT;
    CHECK(mode >= 0 && mode <= 2, INVALID_VALUE);
    CHECK((uintptr_t)stream > 2, CAPTURE_UNSUPPORTED); /* the default streams can't be captured */
    CHECK(stream_of(stream) && !stream->capturing, INVALID_VALUE);
    stream->capturing = new_graph();
    stream->is_invalid = 0;
    return SUCCESS;
}
API CUresult cuGraphDestroy(struct graph *graph) {
    for (struct operation *work = graph->first, *next; work; work = next) next = work->next, free(work);
    free(graph);
    count(&live_graphs, -1);
    return SUCCESS;
}
API CUresult cuStreamEndCapture(struct stream *stream, struct graph **graph) {
    NEED_CONTEXT;
    CHECK(stream->capturing, CAPTURE_UNMATCHED);
    *graph = stream->capturing;
    stream->capturing = NULL;
    if (!stream->is_invalid) return SUCCESS;
    cuGraphDestroy(*graph);
    *graph = NULL;
    return CAPTURE_INVALIDATED;
}
API CUresult cuStreamIsCapturing(struct stream *stream, int *status) {
    CHECK(stream_of(stream), INVALID_HANDLE);
    *status = !stream_of(stream)->capturing ? 0 : stream_of(stream)->is_invalid ? 2 : 1;
    return SUCCESS;
}
API CUresult cuGraphInstantiateWithFlags(struct graph **executable, struct graph *graph, unsigned long long flags) {
    NEED_CONTEXT;
    (void)flags;
    *executable = new_graph();
    for (struct operation *work = graph->first; work; work = work->next) {
        *(*executable)->last = memcpy(malloc(sizeof *work), work, sizeof *work);
        (*executable)->last = &(*(*executable)->last)->next;
        *(*executable)->last = NULL;
    }
    return SUCCESS;
}
API CUresult cuGraphExecDestroy(struct graph *executable) { return cuGraphDestroy(executable); }
API CUresult cuGraphLaunch(struct graph *executable, struct stream *stream) {
    NEED_CONTEXT;
    CHECK(stream_of(stream), INVALID_HANDLE);
    for (struct operation *work = executable->first; work; work = work->next) perform(work);
    count(&launches, 1);
    return SUCCESS;
}

/* --- kernels ------------------------------------------------------------------------------------------------- */

API CUresult cuModuleLoadDataEx(struct module **module, const void *code, unsigned number_of, void *options, void **values) {
    NEED_CONTEXT;
    (void)number_of, (void)options, (void)values;
    CHECK(memcmp(code, "\177ELF", 4) && memcmp(code, "\x50\xed\x55\xba", 4), NO_BINARY_FOR_GPU);
    CHECK(strstr(code, ".version"), INVALID_IMAGE);
    *module = malloc(sizeof **module);
    (*module)->code = strdup(code);
    count(&live_modules, 1);
    return SUCCESS;
}
API CUresult cuModuleLoadData(struct module **module, const void *code) {
    return cuModuleLoadDataEx(module, code, 0, NULL, NULL);
}
API CUresult cuModuleUnload(struct module *module) {
    free(module->code);
    free(module);
    count(&live_modules, -1);
    return SUCCESS;
}
API CUresult cuModuleGetFunction(struct kernel **function, struct module *module, const char *name) {
    static struct kernel kernels[2] = {{0}, {1}};
    for (const char *at = module->code; (at = strstr(at, ".entry ")); at++) {
        size_t length = strcspn(at + 7, "( \t\n");
        if (length == strlen(name) && !strncmp(at + 7, name, length)) {
            *function = &kernels[!strcmp(name, "scale")];
            return SUCCESS;
        }
    }
    return NOT_FOUND;
}
API CUresult cuLibraryLoadData(struct module **library, const void *code, void *a, void **b, unsigned c, void *d, void **e,
                               unsigned f) {
    (void)c, (void)d, (void)e, (void)f;
    return cuModuleLoadDataEx(library, code, 0, a, b);
}
API CUresult cuLibraryUnload(struct module *library) { return cuModuleUnload(library); }
API CUresult cuLibraryGetModule(struct module **module, struct module *library) { *module = library; return SUCCESS; }
API CUresult cuLibraryGetKernel(struct kernel **kernel, struct module *library, const char *name) {
    return cuModuleGetFunction(kernel, library, name);
}
API CUresult cuKernelGetLibrary(struct module **library, struct kernel *kernel) {
    (void)library, (void)kernel;
    return NOT_FOUND;
}
API CUresult cuKernelGetFunction(struct kernel **function, struct kernel *kernel) { *function = kernel; return SUCCESS; }
API CUresult cuFuncSetBlockShape(struct kernel *kernel, int x, int y, int z) {
    (void)kernel;
    return x > 0 && y > 0 && z > 0 ? SUCCESS : INVALID_VALUE;
}

#define BUFFER_POINTER ((void *)1)
API CUresult cuLaunchKernel(struct kernel *kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                            unsigned bz, unsigned shared, struct stream *stream, void **parameters, void **extra) {
    (void)shared;
    CHECK(gx && gy && gz && bx && by && bz && bx * by * bz <= 1024, INVALID_VALUE);
    count(&launches, 1);
    CHECK(kernel->is_scale, SUCCESS);
    struct { float *out; const float *in; float factor; unsigned n; } arguments;
    if (extra && extra[0] == BUFFER_POINTER) {
        CHECK(*(size_t *)extra[3] == sizeof arguments, INVALID_VALUE);
        memcpy(&arguments, extra[1], sizeof arguments);
    } else {
        memcpy(&arguments.out, parameters[0], 8);
        memcpy(&arguments.in, parameters[1], 8);
        memcpy(&arguments.factor, parameters[2], 4);
        memcpy(&arguments.n, parameters[3], 4);
    }
    unsigned n = gx * bx < arguments.n ? gx * bx : arguments.n;
    return queue(stream, (struct operation){1, arguments.out, arguments.in, n, arguments.factor, NULL});
}
struct launch { unsigned gx, gy, gz, bx, by, bz, shared; struct stream *stream; void *attributes; unsigned number_of; };
API CUresult cuLaunchKernelEx(const struct launch *how, struct kernel *kernel, void **parameters, void **extra) {
    return cuLaunchKernel(kernel, how->gx, how->gy, how->gz, how->bx, how->by, how->bz, how->shared, how->stream,
                          parameters, extra);
}

/* --- what PyCUDA is linked to and we never call ---------------------------------------------------------------- */

#define NEVER_CALLED \
    X(cuArray3DCreate_v2) X(cuArray3DGetDescriptor_v2) X(cuArrayCreate_v2) X(cuArrayDestroy) \
    X(cuArrayGetDescriptor_v2) X(cuCtxAttach) X(cuCtxCreate_v2) X(cuCtxCreate_v4) X(cuCtxDetach) \
    X(cuCtxDisablePeerAccess) X(cuCtxEnablePeerAccess) X(cuCtxGetCacheConfig) X(cuCtxGetLimit) \
    X(cuCtxGetSharedMemConfig) X(cuCtxSetCacheConfig) X(cuCtxSetLimit) X(cuCtxSetSharedMemConfig) \
    X(cuDeviceCanAccessPeer) X(cuDeviceGetByPCIBusId) X(cuDeviceGetPCIBusId) X(cuFuncGetAttribute) \
    X(cuFuncSetAttribute) X(cuFuncSetCacheConfig) X(cuFuncSetSharedSize) X(cuIpcCloseMemHandle) \
    X(cuIpcGetEventHandle) X(cuIpcGetMemHandle) X(cuIpcOpenEventHandle) X(cuIpcOpenMemHandle_v2) X(cuLaunch) \
    X(cuLaunchGrid) X(cuLaunchGridAsync) X(cuLinkAddData_v2) X(cuLinkAddFile_v2) X(cuLinkComplete) X(cuLinkCreate_v2) \
    X(cuLinkDestroy) X(cuMemAllocManaged) X(cuMemAllocPitch_v2) X(cuMemGetAddressRange_v2) \
    X(cuMemHostGetDevicePointer_v2) X(cuMemHostGetFlags) X(cuMemHostRegister_v2) X(cuMemHostUnregister) \
    X(cuMemcpy2DAsync_v2) X(cuMemcpy2DUnaligned_v2) X(cuMemcpy2D_v2) X(cuMemcpy3DAsync_v2) X(cuMemcpy3DPeer) \
    X(cuMemcpy3DPeerAsync) X(cuMemcpy3D_v2) X(cuMemcpyAtoA_v2) X(cuMemcpyAtoD_v2) X(cuMemcpyAtoH_v2) \
    X(cuMemcpyDtoA_v2) X(cuMemcpyDtoD_v2) X(cuMemcpyDtoH_v2) X(cuMemcpyHtoA_v2) X(cuMemcpyHtoD_v2) X(cuMemcpyPeer) \
    X(cuMemcpyPeerAsync) X(cuMemsetD16Async) X(cuMemsetD16_v2) X(cuMemsetD2D16Async) X(cuMemsetD2D16_v2) \
    X(cuMemsetD2D32Async) X(cuMemsetD2D32_v2) X(cuMemsetD2D8Async) X(cuMemsetD2D8_v2) X(cuMemsetD32Async) \
    X(cuMemsetD32_v2) X(cuMemsetD8Async) X(cuMemsetD8_v2) X(cuModuleGetGlobal_v2) X(cuModuleGetSurfRef) \
    X(cuModuleGetTexRef) X(cuModuleLoad) X(cuParamSetSize) X(cuParamSetTexRef) X(cuParamSetf) X(cuParamSeti) \
    X(cuParamSetv) X(cuProfilerInitialize) X(cuProfilerStart) X(cuProfilerStop) X(cuStreamAttachMemAsync) \
    X(cuSurfRefGetArray) X(cuSurfRefSetArray) X(cuTexRefCreate) X(cuTexRefDestroy) X(cuTexRefGetAddressMode) \
    X(cuTexRefGetAddress_v2) X(cuTexRefGetArray) X(cuTexRefGetFilterMode) X(cuTexRefGetFlags) X(cuTexRefGetFormat) \
    X(cuTexRefSetAddress2D_v3) X(cuTexRefSetAddressMode) X(cuTexRefSetAddress_v2) X(cuTexRefSetArray) \
    X(cuTexRefSetFilterMode) X(cuTexRefSetFlags) X(cuTexRefSetFormat)
#define X(name) API CUresult name(void) { return NOT_SUPPORTED; }
NEVER_CALLED
#undef X
#define X(name) #name,
static const char *const never_called[] = {NEVER_CALLED};
#undef X

/* --- how cuda-bindings finds all of this --------------------------------------------------------------------- */

API CUresult cuGetProcAddress_v2(const char *symbol, void **function, int version, unsigned long long flags, int *status) {
    (void)version, (void)flags;
    const char *endings[] = {"", "_v2", "_v3", "_v4"};
    Dl_info self;
    dladdr((void *)cuInit, &self);
    void *library = dlopen(self.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    *function = NULL;
    for (int i = 0; i < 4 && !*function && library && !strncmp(symbol, "cu", 2); i++) {
        char name[128];
        snprintf(name, sizeof name, "%s%s", symbol, endings[i]);
        *function = dlsym(library, name);
        for (size_t n = 0; n < sizeof never_called / sizeof *never_called; n++)
            if (!strcmp(name, never_called[n])) *function = NULL;
        Dl_info found; /* dlsym also looks into what libraries depend on, and libc has no cu… */
        if (*function && (!dladdr(*function, &found) || strcmp(found.dli_fname, self.dli_fname))) *function = NULL;
    }
    if (library) dlclose(library);
    if (status) *status = *function ? 0 : 1;
    return *function ? SUCCESS : NOT_FOUND;
}
