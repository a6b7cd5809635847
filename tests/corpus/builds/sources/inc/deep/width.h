#define WIDTH 128
