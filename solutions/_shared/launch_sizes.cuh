// The smallest power of two of at least `wanted` threads, from one warp to `most`.
int threads_for(int64_t wanted, int most) {
  int threads = 32;
  while (threads < most && threads < wanted) threads *= 2;
  return threads;
}

unsigned grid_for(int64_t jobs) {
  return static_cast<unsigned>(std::min<int64_t>(jobs, 2147483647));
}
