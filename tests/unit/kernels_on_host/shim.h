// What of CUDA the kernels use, for g++: enough to run their very source on a CPU, thread by thread.
#pragma once

#include <algorithm>
#include <cstring>

#define TESO_ON_HOST
#define __global__
#define __device__
#define __shared__ static  // one block runs at a time

struct Dim3 {
  unsigned x, y, z;
};
extern Dim3 gridDim, blockDim, blockIdx, threadIdx;

void __syncthreads();  // runner.cpp: hands over to the block's other threads

using std::max;
using std::min;

// Compiled with -ffp-contract=off.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }

inline float __int_as_float(int bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline int __ffs(int value) { return __builtin_ffs(value); }
inline unsigned atomicOr(unsigned* place, unsigned bits) {
  const unsigned before = *place;
  *place |= bits;
  return before;
}

inline unsigned short half_bits(float value) {
  const _Float16 half = static_cast<_Float16>(value);
  unsigned short bits;
  std::memcpy(&bits, &half, sizeof bits);
  return bits;
}
inline float half_value(unsigned short bits) {
  _Float16 half;
  std::memcpy(&half, &bits, sizeof half);
  return static_cast<float>(half);
}
