// Runs the kernels on the CPU, all blocks and threads, at the command of device.py over stdin and stdout.
//
// A thread of a block is a fiber that gives way at __syncthreads. Blocks run one after the other, the threads of
// every other block in reverse, so that a missing barrier shows. Built with -fsanitize=address,undefined: every
// block of memory is one of malloc's, and whatever is read or written beside it ends the process with a report.

#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "shim.h"

Dim3 gridDim, blockDim, blockIdx, threadIdx;

#include "postprocess.cu"
#include "preprocess.cu"

namespace {

constexpr std::size_t STACK_BYTES = 64 * 1024;

struct Fiber {
  ucontext_t context;
  std::vector<char> stack;
  bool is_done = false;
};

ucontext_t scheduler;
Fiber* running = nullptr;
const std::function<void()>* body = nullptr;

[[noreturn]] void fail(const std::string& reason) {
  std::fprintf(stderr, "kernels on host: %s\n", reason.c_str());
  std::exit(3);
}

void start_fiber() {
  (*body)();
  running->is_done = true;  // uc_link goes back to the scheduler
}

void run_block(std::vector<Fiber>& fibers, bool is_reversed) {
  for (Fiber& fiber : fibers) {
    fiber.is_done = false;
    fiber.stack.resize(STACK_BYTES);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = &scheduler;
    makecontext(&fiber.context, start_fiber, 0);
  }
  const std::size_t count = fibers.size();
  for (std::size_t done = 0; done < count;) {
    done = 0;
    for (std::size_t turn = 0; turn < count; ++turn) {
      const unsigned index = is_reversed ? count - 1 - turn : turn;
      threadIdx = {index % blockDim.x, index / blockDim.x % blockDim.y, index / (blockDim.x * blockDim.y)};
      running = &fibers[index];
      swapcontext(&scheduler, &running->context);
      done += running->is_done;
    }
    if (done != 0 && done != count) fail("some threads of a block ended while others wait in __syncthreads");
  }
}

using Launcher = std::function<void(const std::vector<std::uint64_t>&)>;

template <typename Parameter>
Parameter argument(std::uint64_t slot) {
  Parameter value;
  std::memcpy(&value, &slot, sizeof value);
  return value;
}

template <typename... Parameters, std::size_t... Index>
Launcher bound(void (*kernel)(Parameters...), std::index_sequence<Index...>) {
  return [kernel](const std::vector<std::uint64_t>& slots) {
    if (slots.size() != sizeof...(Parameters)) fail("a kernel was given too many or too few arguments");
    kernel(argument<Parameters>(slots[Index])...);
  };
}

template <typename... Parameters>
std::pair<std::string, Launcher> sizes_and(void (*kernel)(Parameters...)) {
  // A digit an argument, its size in bytes: what CUDA itself can't check.
  return {(std::to_string(sizeof(Parameters)) + ...),
          bound(kernel, std::make_index_sequence<sizeof...(Parameters)>())};
}

#define KERNEL(name) {#name, sizes_and(name)}
const std::map<std::string, std::pair<std::string, Launcher>> KERNELS{
    KERNEL(teso_preprocess_rgb_float32),  KERNEL(teso_preprocess_rgb_float16),
    KERNEL(teso_preprocess_nv12_float32), KERNEL(teso_preprocess_nv12_float16),
    KERNEL(teso_postprocess_float32),     KERNEL(teso_postprocess_float16),
};

void read_bytes(void* place, std::size_t nbytes) {
  if (std::fread(place, 1, nbytes, stdin) != nbytes) fail("the command broke off");
}

template <typename Value>
Value read_value() {
  Value value;
  read_bytes(&value, sizeof value);
  return value;
}

std::string read_text() {
  std::string text(read_value<std::uint64_t>(), '\0');
  read_bytes(text.data(), text.size());
  return text;
}

void launch() {
  const std::string name = read_text(), sizes = read_text();
  gridDim = read_value<Dim3>();
  blockDim = read_value<Dim3>();
  std::vector<std::uint64_t> slots(sizes.size());
  read_bytes(slots.data(), slots.size() * sizeof slots[0]);
  const auto found = KERNELS.find(name);
  if (found == KERNELS.end()) fail("there is no kernel " + name);
  if (found->second.first != sizes)
    fail(name + " takes arguments of " + found->second.first + " bytes and was given " + sizes);
  const std::function<void()> call = [&] { found->second.second(slots); };
  body = &call;
  std::vector<Fiber> fibers(static_cast<std::size_t>(blockDim.x) * blockDim.y * blockDim.z);
  unsigned number = 0;
  for (unsigned z = 0; z < gridDim.z; ++z)
    for (unsigned y = 0; y < gridDim.y; ++y)
      for (unsigned x = 0; x < gridDim.x; ++x) {
        blockIdx = {x, y, z};
        run_block(fibers, number++ % 2 == 1);
      }
}

}  // namespace

void __syncthreads() { swapcontext(&running->context, &scheduler); }

int main() {
  for (int command = std::getchar(); command != EOF; command = std::getchar()) {
    std::uint64_t answer = 0;
    if (command == 'A') {  // allocate: bytes → address
      const auto nbytes = read_value<std::uint64_t>();
      void* memory = std::malloc(nbytes);
      std::memset(memory, 0xA5, nbytes);  // what nobody wrote is not 0
      answer = reinterpret_cast<std::uint64_t>(memory);
    } else if (command == 'F') {  // free: address
      std::free(reinterpret_cast<void*>(read_value<std::uint64_t>()));
    } else if (command == 'W') {  // write: address, bytes, data
      void* place = reinterpret_cast<void*>(read_value<std::uint64_t>());
      const std::string data = read_text();
      std::memcpy(place, data.data(), data.size());
    } else if (command == 'R') {  // read: address, bytes → data
      const void* place = reinterpret_cast<const void*>(read_value<std::uint64_t>());
      const std::string data(static_cast<const char*>(place), read_value<std::uint64_t>());
      std::fwrite(data.data(), 1, data.size(), stdout);
    } else if (command == 'L') {
      launch();
    } else {
      fail("an unknown command");
    }
    std::fwrite(&answer, sizeof answer, 1, stdout);
    std::fflush(stdout);
  }
}
