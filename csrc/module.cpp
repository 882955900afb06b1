// What the library says about itself. The ops register themselves, one file each.

extern "C" __attribute__((visibility("default"))) const char* dspark_cuda_archs() {
  return DSPARK_CUDA_ARCHS;  // such as "80;90"; empty without CUDA kernels
}
